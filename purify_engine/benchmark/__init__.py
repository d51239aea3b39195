"""How fast is it, measured honestly: every figure beside a named opponent, in the same run, on the user's own machine."""
