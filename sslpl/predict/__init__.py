"""What a finished run says of new images: read the run, read the images, predict, write tables or an ONNX file."""
