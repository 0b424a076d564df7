"""Who tells the classes of the images that a query picked: the dataset, or people."""
