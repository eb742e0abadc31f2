"""Miaocang (秒仓): the stock engine behind livestream flash sales."""
