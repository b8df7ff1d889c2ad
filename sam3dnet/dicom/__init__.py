"""DICOM in and out: series of scanners to images, and label maps to what archives and planning systems take."""
