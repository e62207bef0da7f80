"""The audit: numeric probes of the installed stack, on the very engine that a run will use, before it is trained.

Silent bugs of training frameworks decided published results ("SFT-then-RL Outperforms Mixed-Policy Methods"). Each
probe takes one optimizer step with the trainer that runs use and compares what reached the weights with an
independent reference (referee.py); one that fails stops the runs that wait for it.
"""
