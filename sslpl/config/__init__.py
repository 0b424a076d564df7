"""From a composed config to a run: validation, identity, plan, building."""
