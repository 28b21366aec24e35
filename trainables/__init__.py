"""Train and evaluate one model, on one machine, from one config. Never imports ray, mlflow or orchestrator."""
