"""Faster R-CNN, its freezing, training, evaluation and export."""
