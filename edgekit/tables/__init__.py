"""The numbers a plan is made from: what is offered, what it costs and loses, and what realising it taught."""
