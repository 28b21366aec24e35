"""Trained networks that are used without their study: safetensors and JSON, ONNX, and a module for each task."""
