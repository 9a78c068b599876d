"""Kinds of images, each with its ImageReader: folders of ordinary files, DICOM, NIfTI, arrays,
published sets."""
