"""Kinds of images, each read by one ImageReader: a folder of ordinary files, DICOM, NIfTI, arrays, published sets."""
