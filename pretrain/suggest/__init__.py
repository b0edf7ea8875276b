"""A recipe for the images and the machine at hand."""
