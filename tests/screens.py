"""Sizes of windows that pages are looked at in, in pixels."""

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
