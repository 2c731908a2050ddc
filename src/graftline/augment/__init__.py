"""Turn a decoded image into what the network takes: preprocessing, augmentation policies, the preview sheet."""
