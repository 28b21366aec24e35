"""One module per kind of data source: image folders, manifests, MedMNIST, torchvision, synthetic images."""
