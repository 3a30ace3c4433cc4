"""Datasets of the user's own, by name: a folder, an npz file, a prepared TFDS dataset."""
