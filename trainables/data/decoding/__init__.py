"""Decoding of image files, DICOM files and arrays to uint8 images of one size."""
