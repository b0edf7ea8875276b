"""Pictures of images with their objects: ground truth, detections, batches."""
