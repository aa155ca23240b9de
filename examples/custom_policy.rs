//! GRPO, then GSPO, on a burn model that is no language model: it learns to place queens that do not attack each other.
//!
//! ```sh
//! cargo run --release --example custom_policy
//! ```
//! One CPU core, about a second after the build. Last line: `learned, twice`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use firesight_rl::{
    Algorithm, Completion, Error, Group, Options, Policy, Reward, Sampler, Sampling, Scores, SignalSet, Task,
    TaskError, Trainer, Uniform, sample_from_logits,
};

const SIZE: usize = 5;

/// Sees the board, and says in which column of the next row a queen should stand.
#[derive(Module, Debug)]
struct Player {
    hidden: Linear,
    output: Linear,
}

impl Player {
    /// `[boards, columns]`; a board is the queen of the first row and those of the rows after it.
    fn logits(&self, boards: &[(&u32, &[u32])]) -> Tensor<2> {
        let mut squares = vec![0.0f32; boards.len() * SIZE * SIZE];
        for (board, (first, others)) in squares.chunks_exact_mut(SIZE * SIZE).zip(boards) {
            for (row, column) in std::iter::once(*first).chain(*others).enumerate() {
                board[row * SIZE + *column as usize] = 1.0;
            }
        }
        let squares = TensorData::new(squares, [boards.len(), SIZE * SIZE]);
        let squares = Tensor::from_data(squares, &self.output.weight.device());
        self.output.forward(relu(self.hidden.forward(squares)))
    }
}

impl Policy for Player {
    type Prompt = u32;

    fn score(&self, groups: &[Group<u32>], temperature: f32, _: &SignalSet) -> Result<Scores, Error> {
        let games = groups.iter().flat_map(|group| group.completions.iter().map(|game| (&group.prompt, &game.tokens)));
        let boards = games.flat_map(|(first, moves)| (0..moves.len()).map(move |row| (first, &moves[..row])));
        Scores::from_logits(self.logits(&boards.collect::<Vec<_>>()), groups, temperature)
    }
}

impl Sampler<u32> for Player {
    fn sample(&self, prompts: &[u32], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error> {
        sample_from_logits(prompts, group_size, sampling, None, |boards| self.logits(boards))
    }
}

/// The first queen stands where the sample says; the reward is the share of rows whose queen attacks none above it.
struct Queens;

impl Task for Queens {
    type Sample = u32;
    type Prompt = u32;

    fn prompt(&self, first: &u32) -> Result<u32, TaskError> {
        Ok(*first)
    }

    fn reward(&self, first: &u32, game: &Completion) -> Result<Reward, TaskError> {
        let queens: Vec<u32> = std::iter::once(*first).chain(game.tokens.iter().copied()).collect();
        let attacks = |a: usize, b: usize| queens[a] == queens[b] || queens[a].abs_diff(queens[b]) as usize == b - a;
        let safe = (1..SIZE).filter(|&row| !(0..row).any(|above| attacks(above, row))).count();
        Ok(Reward::of("safe", safe as f32 / (SIZE - 1) as f32))
    }
}

/// Trains both ways and asserts that both learned.
pub fn main() -> Result<(), Error> {
    for (name, algorithm) in [("GRPO", Algorithm::grpo()), ("GSPO", Algorithm::gspo())] {
        let device = Device::flex().autodiff();
        device.seed(1);
        let policy = Player {
            hidden: LinearConfig::new(SIZE * SIZE, 64).init(&device),
            output: LinearConfig::new(64, SIZE).init(&device),
        };
        let sampling = Sampling { temperature: 1.0, max_tokens: SIZE - 1, seed: 7, first_stream: 0 };
        let optimizer = AdamWConfig::new().init();
        let mut trainer = Trainer::new(policy, optimizer, algorithm, Uniform, Options::new(16, sampling))?;
        let first_queens: Vec<u32> = (0..SIZE as u32).collect();
        let mut safe = Vec::new();
        for _ in 0..200 {
            safe.extend(trainer.step(&Queens, &first_queens, 0.01)?.metric("reward/mean"));
        }
        println!("{name}: {:.0} % of the rows were safe at first, now {:.0} %", 100.0 * safe[0], 100.0 * safe[199]);
        assert!(safe[199] > 0.8, "{name} did not learn");
    }
    println!("learned, twice");
    Ok(())
}
