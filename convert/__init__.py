"""Any toolkit's ResNet checkpoint → one verified state dict → Detectron2's and other forms."""
