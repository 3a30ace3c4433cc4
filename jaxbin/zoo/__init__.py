"""Trained networks that the package carries; `jaxbin.load` finds them by name."""
