"""Keep many images in few files: tars as WebDataset lays them out, each with an index beside it."""
