"""The Flower app: private federated training and encrypted inference on MNIST."""
