"""From a decoded image to what the network takes: preprocessing, augmentation policies, the preview sheet."""
