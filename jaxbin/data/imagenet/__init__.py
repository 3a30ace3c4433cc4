"""ImageNet: from the original files, or a folder of images, to streamed batches."""
