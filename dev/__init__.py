"""Tools for developers of UGRO. They need the checkout, and are in no wheel."""
