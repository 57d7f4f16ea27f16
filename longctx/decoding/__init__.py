"""Decoding: the token tree, the rules of acceptance, the controller and the one draft-verify loop."""
