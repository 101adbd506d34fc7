"""Find and repair the flaws of a dataset: structure, ids, boxes, masks and images.

:mod:`d2_maskrcnn.data.checking` has the public functions.
"""
