"""What adaptation costs, beside every way of deploying the frozen model."""
