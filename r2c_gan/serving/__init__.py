"""SavedModel, ONNX, the server and the viewer."""
