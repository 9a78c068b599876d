"""The loop and what stands in it: settings, the parts built from a config, EMA."""
