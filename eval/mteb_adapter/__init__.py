"""mteb in both directions: its tasks and models here, our tasks and encoders there."""
