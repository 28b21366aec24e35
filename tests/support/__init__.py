"""Servers, fakes and small studies that several tests share."""
