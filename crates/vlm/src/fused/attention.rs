//! Attention on the CPU, tile by tile: a few queries at a time with everything that they see, so that their scores stay
//! in the cache and nothing as long as tokens squared is ever kept. The backward pass computes the probabilities again
//! (Dao et al., arXiv 2205.14135; the softmax itself is not cut, for a row of scores is short).

use std::ops::Range;

use rayon::prelude::*;

use super::product::{Matrix, Spread, product};
use super::{Span, kernel, queries_together};

/// Multiplications below which threads are not worth their while.
const SMALL: usize = 1 << 18;

/// Queries that follow each other, of one prompt, and what they see.
#[derive(Debug, Clone)]
pub(super) struct Tile {
    queries: Range<usize>,
    prompt: Range<usize>,
    pieces: Vec<Piece>,
    /// Room for the scores of a query: with the keys of its prompt, and with those of its own.
    room: [usize; 2],
}

/// Queries of a tile with the same keys of their own.
#[derive(Debug, Clone)]
struct Piece {
    /// Counted from the first of the tile.
    queries: Range<usize>,
    /// Those that the last query sees.
    keys: Range<usize>,
    causal: bool,
}

impl Piece {
    /// Keys of its own that a query sees, counted as in [`Self::queries`].
    fn count(&self, query: usize) -> usize {
        if self.causal { self.keys.len() + query + 1 - self.queries.end } else { self.keys.len() }
    }
}

/// Tiles by prompt. Lists may have keys in common: those of a prompt that runs beside its completions are its own, and
/// theirs.
pub(super) fn tiles(spans: &[Span], causal: bool, sharing: usize) -> Vec<Vec<Tile>> {
    spans.chunk_by(Span::same_prompt).map(|family| tiles_of(family, causal, sharing)).collect()
}

fn tiles_of(family: &[Span], causal: bool, sharing: usize) -> Vec<Tile> {
    let prompt = family[0].prompt.clone();
    let own = family.iter().map(|span| span.own.len()).max().unwrap_or(0);
    let size = queries_together(sharing, prompt.len() + own);
    let queries = family[0].queries.start..family[family.len() - 1].queries.end;
    let tile = |start: usize| {
        let end = (start + size).min(queries.end);
        let piece = |span: &Span| {
            let part = span.queries.start.max(start)..span.queries.end.min(end);
            let hidden = if causal { span.queries.end - part.end } else { 0 };
            let keys = span.own.start..span.own.end - hidden;
            Piece { queries: part.start - start..part.end - start, keys, causal }
        };
        let within = |span: &&Span| span.queries.start < end && span.queries.end > start;
        let pieces: Vec<Piece> = family.iter().filter(within).map(piece).collect();
        let own = pieces.iter().map(|piece| piece.keys.len()).max().unwrap_or(0);
        let room = [prompt.len(), own].map(|keys| keys.next_multiple_of(kernel::ROUND));
        Tile { queries: start..end, prompt: prompt.clone(), pieces, room }
    };
    queries.clone().step_by(size).map(tile).collect()
}

/// What attention is given: queries `[queries, query heads, dim]`, keys and values `[tokens, key heads, dim]` of the
/// prompts and of the queries' own. Without any of prompts, these lie among the others.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) query: &'a [f32],
    pub(super) prompt: [&'a [f32]; 2],
    pub(super) own: [&'a [f32]; 2],
    pub(super) query_heads: usize,
    pub(super) key_heads: usize,
    pub(super) dim: usize,
    pub(super) scale: f32,
}

/// Gradients in the order and the shapes of what was given.
pub(super) struct ToGiven {
    pub(super) query: Vec<f32>,
    pub(super) prompt: [Vec<f32>; 2],
    pub(super) own: [Vec<f32>; 2],
}

/// What a thread works with, from tile to tile.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    to_prompt: Vec<f32>,
    to_own: Vec<f32>,
    gradient: Vec<f32>,
    back_to_prompt: Vec<f32>,
    back_to_own: Vec<f32>,
}

/// The first elements, whatever they are.
fn room(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

impl<'a> Given<'a> {
    fn sharing(&self) -> usize {
        self.query_heads / self.key_heads
    }

    /// Where prompts have their keys (0) or values (1).
    fn of_prompts(&self, of: usize) -> &'a [f32] {
        if self.prompt[of].is_empty() { self.own[of] } else { self.prompt[of] }
    }

    /// Rows of keys or values, of one key head.
    fn rows(&self, of: &'a [f32], rows: &Range<usize>, head: usize) -> Matrix<'a> {
        let stride = self.key_heads * self.dim;
        let start = if rows.is_empty() { 0 } else { rows.start * stride + head * self.dim };
        Matrix::strided(&of[start..], rows.len(), self.dim, [stride, 1])
    }

    /// Copies what a tile's queries have for one key head: `[queries x sharing, dim]`.
    fn gather(&self, of: &[f32], tile: &Tile, head: usize, factor: f32, out: &mut [f32]) {
        let width = self.sharing() * self.dim;
        for (query, out) in tile.queries.clone().zip(out.chunks_exact_mut(width)) {
            let row = &of[(query * self.key_heads + head) * width..][..width];
            out.iter_mut().zip(row).for_each(|(out, &value)| *out = value * factor);
        }
    }

    /// Products of a tile's rows with rows of the prompt and of their own.
    fn products(&self, tile: &Tile, head: usize, of: usize, rows: Matrix<'_>, to: [&mut [f32]; 2]) {
        let (sharing, [to_prompt, to_own]) = (self.sharing(), to);
        if !tile.prompt.is_empty() {
            let right = self.rows(self.of_prompts(of), &tile.prompt, head).transposed();
            product(to_prompt, [tile.room[0], 1], rows, right, false, Spread::No);
        }
        for piece in &tile.pieces {
            let right = self.rows(self.own[of], &piece.keys, head).transposed();
            let left = rows.part(piece.queries.start * sharing, piece.queries.len() * sharing);
            product(
                &mut to_own[piece.queries.start * sharing * tile.room[1]..],
                [tile.room[1], 1],
                left,
                right,
                false,
                Spread::No,
            );
        }
    }

    /// Sums of rows of the prompt and of their own, weighted by a tile's rows.
    fn mixtures(&self, tile: &Tile, head: usize, of: usize, weights: [&[f32]; 2], out: &mut [f32]) {
        let (sharing, [to_prompt, to_own]) = (self.sharing(), weights);
        let rows = tile.queries.len() * sharing;
        let prompt = !tile.prompt.is_empty();
        if prompt {
            let left = Matrix::strided(to_prompt, rows, tile.prompt.len(), [tile.room[0], 1]);
            product(out, [self.dim, 1], left, self.rows(self.of_prompts(of), &tile.prompt, head), false, Spread::No);
        }
        for piece in &tile.pieces {
            let first = piece.queries.start * sharing;
            let left = part_of(to_own, tile, piece, sharing);
            let right = self.rows(self.own[of], &piece.keys, head);
            product(&mut out[first * self.dim..], [self.dim, 1], left, right, prompt, Spread::No);
        }
    }

    /// What the rows of a tile see: numbers of keys of the prompt and of their own.
    fn each_row(&self, tile: &Tile, mut work: impl FnMut(usize, [usize; 2])) {
        let sharing = self.sharing();
        for piece in &tile.pieces {
            for query in piece.queries.clone() {
                for row in query * sharing..(query + 1) * sharing {
                    work(row, [tile.prompt.len(), piece.count(query)]);
                }
            }
        }
    }

    fn forward_tile(&self, tile: &Tile, head: usize, scratch: &mut Scratch) -> (Vec<f32>, Vec<f32>) {
        let rows = tile.queries.len() * self.sharing();
        let queries = room(&mut scratch.queries, rows * self.dim);
        let [prompt, own] = tile.room;
        let to_prompt = room(&mut scratch.to_prompt, rows * prompt);
        let to_own = room(&mut scratch.to_own, rows * own);
        self.gather(self.query, tile, head, self.scale, queries);
        self.products(tile, head, 0, Matrix::new(queries, rows, self.dim), [&mut *to_prompt, &mut *to_own]);
        let mut log_totals = vec![0.0; rows];
        self.each_row(tile, |row, counts| {
            let one = &mut to_prompt[row * prompt..][..prompt];
            log_totals[row] = kernel::softmax(one, &mut to_own[row * own..][..own], counts);
        });
        let mut out = vec![0.0; rows * self.dim];
        self.mixtures(tile, head, 1, [to_prompt, to_own], &mut out);
        (out, log_totals)
    }

    /// Mixtures `[queries, query heads, dim]`, and the logarithms of the softmax `[queries, query heads]`.
    pub(super) fn forward(&self, tiles: &[Vec<Tile>]) -> (Vec<f32>, Vec<f32>) {
        let tasks: Vec<(&Tile, usize)> =
            tiles.iter().flatten().flat_map(|tile| (0..self.key_heads).map(move |head| (tile, head))).collect();
        let found = in_tasks(&tasks, self.work(tiles), |scratch, &(tile, head)| self.forward_tile(tile, head, scratch));
        let (mut out, mut log_totals) = (vec![0.0; self.query.len()], vec![0.0; self.query.len() / self.dim]);
        for (&(tile, head), (rows, totals)) in tasks.iter().zip(&found) {
            self.scatter(&mut out, rows, tile, head, self.sharing() * self.dim);
            self.scatter(&mut log_totals, totals, tile, head, self.sharing());
        }
        (out, log_totals)
    }

    /// The way back of [`Self::gather`], for rows of any width.
    fn scatter(&self, out: &mut [f32], rows: &[f32], tile: &Tile, head: usize, width: usize) {
        for (query, row) in tile.queries.clone().zip(rows.chunks_exact(width)) {
            out[(query * self.key_heads + head) * width..][..width].copy_from_slice(row);
        }
    }

    /// Multiplications, roughly.
    fn work(&self, tiles: &[Vec<Tile>]) -> usize {
        let scores = |tile: &Tile| tile.queries.len() * (tile.room[0] + tile.room[1]);
        tiles.iter().flatten().map(scores).sum::<usize>() * self.query_heads * self.dim
    }

    /// Gradients, given the gradient of the mixtures and the logarithms that the forward pass returned.
    pub(super) fn backward(&self, tiles: &[Vec<Tile>], gradient: &[f32], log_totals: &[f32]) -> ToGiven {
        let tasks: Vec<(&[Tile], usize)> =
            tiles.iter().flat_map(|family| (0..self.key_heads).map(move |head| (family.as_slice(), head))).collect();
        let found = in_tasks(&tasks, self.work(tiles), |scratch, &(family, head)| {
            self.backward_family(family, head, gradient, log_totals, scratch)
        });
        let zeros = |like: [&[f32]; 2]| like.map(|like| vec![0.0; like.len()]);
        let mut to = ToGiven { query: vec![0.0; self.query.len()], prompt: zeros(self.prompt), own: zeros(self.own) };
        // One after another: they may add to the same keys.
        for (&(family, head), found) in tasks.iter().zip(&found) {
            let width = self.sharing() * self.dim;
            let mut rows = found.query.as_slice();
            for tile in family {
                let (these, rest) = rows.split_at(tile.queries.len() * width);
                self.scatter(&mut to.query, these, tile, head, width);
                rows = rest;
            }
            for (of, found) in found.prompt.iter().enumerate() {
                let to = if to.prompt[of].is_empty() { &mut to.own[of] } else { &mut to.prompt[of] };
                self.add(to, found, &family[0].prompt, head);
            }
            for (to, found) in to.own.iter_mut().zip(&found.own) {
                self.add(to, found, &own_of(family), head);
            }
        }
        to
    }

    /// Adds to rows of the gradient of keys or values, of one key head.
    fn add(&self, to: &mut [f32], found: &[f32], rows: &Range<usize>, head: usize) {
        for (row, found) in rows.clone().zip(found.chunks_exact(self.dim)) {
            let to = &mut to[(row * self.key_heads + head) * self.dim..][..self.dim];
            to.iter_mut().zip(found).for_each(|(to, &found)| *to += found);
        }
    }

    /// Gradients of what the queries of a prompt read of one key head.
    fn backward_family(
        &self,
        family: &[Tile],
        head: usize,
        gradient: &[f32],
        log_totals: &[f32],
        scratch: &mut Scratch,
    ) -> ToGiven {
        let (sharing, dim) = (self.sharing(), self.dim);
        let own = own_of(family);
        let zeros = |rows: &Range<usize>| [(); 2].map(|()| vec![0.0; rows.len() * dim]);
        let mut to = ToGiven { query: Vec::new(), prompt: zeros(&family[0].prompt), own: zeros(&own) };
        for tile in family {
            let rows = tile.queries.len() * sharing;
            let [prompt, room_of_own] = tile.room;
            let queries = room(&mut scratch.queries, rows * dim);
            let to_prompt = room(&mut scratch.to_prompt, rows * prompt);
            let to_own = room(&mut scratch.to_own, rows * room_of_own);
            let gradients = room(&mut scratch.gradient, rows * dim);
            let back_to_prompt = room(&mut scratch.back_to_prompt, rows * prompt);
            let back_to_own = room(&mut scratch.back_to_own, rows * room_of_own);
            self.gather(self.query, tile, head, self.scale, queries);
            self.gather(gradient, tile, head, 1.0, gradients);
            let (queries, gradients) = (Matrix::new(queries, rows, dim), Matrix::new(gradients, rows, dim));
            self.products(tile, head, 0, queries, [&mut *to_prompt, &mut *to_own]);
            self.products(tile, head, 1, gradients, [&mut *back_to_prompt, &mut *back_to_own]);
            self.each_row(tile, |row, counts| {
                let one = &mut to_prompt[row * prompt..][..prompt];
                let other = &mut to_own[row * room_of_own..][..room_of_own];
                let query = tile.queries.start + row / sharing;
                let log_total = log_totals[query * self.query_heads + head * sharing + row % sharing];
                kernel::softmax_again(one, other, counts, log_total);
                let back_to_one = &mut back_to_prompt[row * prompt..][..prompt];
                let back_to_other = &mut back_to_own[row * room_of_own..][..room_of_own];
                kernel::softmax_backward((one, other), back_to_one, back_to_other, counts);
            });
            let start = to.query.len();
            to.query.resize(start + rows * dim, 0.0);
            self.mixtures(tile, head, 0, [&*back_to_prompt, &*back_to_own], &mut to.query[start..]);
            for (of, [to_prompt, to_own], right) in
                [(0, [&*back_to_prompt, &*back_to_own], queries), (1, [&*to_prompt, &*to_own], gradients)]
            {
                if prompt > 0 {
                    let left = Matrix::strided(to_prompt, rows, tile.prompt.len(), [prompt, 1]).transposed();
                    product(&mut to.prompt[of], [dim, 1], left, right, true, Spread::No);
                }
                for piece in &tile.pieces {
                    let left = part_of(to_own, tile, piece, sharing).transposed();
                    let right = right.part(piece.queries.start * sharing, piece.queries.len() * sharing);
                    let out = &mut to.own[of][(piece.keys.start - own.start) * dim..];
                    product(out, [dim, 1], left, right, true, Spread::No);
                }
            }
        }
        to.query.iter_mut().for_each(|value| *value *= self.scale);
        to
    }
}

/// What the rows of a piece have for the keys of their own.
fn part_of<'a>(to_own: &'a [f32], tile: &Tile, piece: &Piece, sharing: usize) -> Matrix<'a> {
    let first = piece.queries.start * sharing * tile.room[1];
    Matrix::strided(&to_own[first..], piece.queries.len() * sharing, piece.keys.len(), [tile.room[1], 1])
}

/// Rows from the first to the last of the keys that queries of a prompt have of their own.
fn own_of(family: &[Tile]) -> Range<usize> {
    let keys = || family.iter().flat_map(|tile| &tile.pieces).map(|piece| &piece.keys);
    keys().map(|keys| keys.start).min().unwrap_or(0)..keys().map(|keys| keys.end).max().unwrap_or(0)
}

/// What `run` finds for every task, side by side where there is much to do.
fn in_tasks<T: Sync, R: Send>(
    tasks: &[T],
    multiplications: usize,
    run: impl Fn(&mut Scratch, &T) -> R + Send + Sync,
) -> Vec<R> {
    if multiplications < SMALL {
        let mut scratch = Scratch::default();
        return tasks.iter().map(|task| run(&mut scratch, task)).collect();
    }
    tasks.par_iter().map_init(Scratch::default, run).collect()
}
