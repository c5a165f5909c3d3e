"""Scenes of objects on a table: a fixed differentiable renderer in place of the decoder."""
