"""Boards: folders of committed results that anybody can regenerate, check and extend."""

from advbench.boards.board import Board as Board
from advbench.boards.board import build as build
from advbench.boards.board import load_board as load_board
