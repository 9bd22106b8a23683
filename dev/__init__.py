"""What those need who work on UGRO itself. It reads the checkout, and is in no wheel."""
