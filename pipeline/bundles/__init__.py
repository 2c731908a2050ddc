"""Bundles that exist already: where one lies, what its images are compared with, and the small one for a device."""
