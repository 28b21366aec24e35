"""The ledger in MLflow. The only package that imports mlflow."""
