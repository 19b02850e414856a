"""Where examples come from: readers, augmentation, the input pipeline, the embedded data set."""
