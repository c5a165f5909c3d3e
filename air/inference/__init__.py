"""From a rollout to a bound, from a bound to a gradient, and a search for better latents."""
