"""Networks by name, exported models, and their ONNX graphs."""
