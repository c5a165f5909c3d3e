"""Evaluation on held-out scenes: metrics of counts, boxes, poses and bounds, and pictures of what a model found."""
