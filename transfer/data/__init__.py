"""Data sets, augmentation and loading: one implementation that both engines train and test on."""
