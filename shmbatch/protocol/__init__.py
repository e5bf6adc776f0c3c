"""The bytes that two processes share: segment, ring, parking, control messages, names."""

PROTOCOL_VERSION = 4  # of the control messages; the segments have layout.LAYOUT_VERSION
