"""Images: data sets and where they come from, how they are cut, preprocessed and augmented."""
