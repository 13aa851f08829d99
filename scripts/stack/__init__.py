"""Stacks of serial sections: registered section to section, resampled once, cropped, written."""
