"""How the answer is computed: the plan, the loop that runs it, the guide that pulls it, and its gradient."""
