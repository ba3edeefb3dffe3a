// SPDX-License-Identifier: GPL-2.0

//! Makes a failing history short: Zeller's ddmin, with complements only, until no single step can be left
//! out.

/// Leaves out as much of `steps` as can be, as long as `fails` says that what is left fails. Stops when
/// `fails` gives up with `None`.
pub fn shrink<T: Clone>(steps: Vec<T>, mut fails: impl FnMut(&[T]) -> Option<bool>) -> Vec<T> {
    let mut steps = steps;
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        let mut left_out = false;
        while start < steps.len() {
            let end = (start + size).min(steps.len());
            let rest = [&steps[..start], &steps[end..]].concat();
            match fails(&rest) {
                Some(true) => {
                    steps = rest;
                    left_out = true;
                }
                Some(false) => start = end,
                None => return steps,
            }
        }
        // What could not be left out before may be now.
        if size > 1 || !left_out {
            size /= 2;
        }
    }
    steps
}

/// Replaces steps by simpler ones, as long as it fails.
pub fn simplify<T: Clone>(
    steps: Vec<T>,
    simpler: impl Fn(&T) -> Vec<T>,
    mut fails: impl FnMut(&[T]) -> Option<bool>,
) -> Vec<T> {
    let mut steps = steps;
    for index in 0..steps.len() {
        for candidate in simpler(&steps[index]) {
            let mut changed = steps.clone();
            changed[index] = candidate;
            match fails(&changed) {
                Some(true) => steps = changed,
                Some(false) => {}
                None => return steps,
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_left() {
        let mut runs = 0;
        let fails = |steps: &[u32]| {
            runs += 1;
            Some([17, 400, 903].iter().all(|step| steps.contains(step)))
        };
        assert_eq!(shrink((0..1000).collect(), fails), [17, 400, 903]);
        assert!(runs < 150, "{runs}");
    }

    #[test]
    fn steps_that_need_one_another() {
        // An opening without its closing one does not fail, so they go only together.
        let fails =
            |steps: &[i32]| Some(steps.contains(&7) && steps.contains(&1) == steps.contains(&-1));
        assert_eq!(shrink(vec![1, -1, 8, 7], fails), [7]);
        assert_eq!(shrink(vec![1, 7, -1], fails), [1, 7, -1]);
    }

    #[test]
    fn nothing_is_left_of_what_always_fails() {
        assert!(shrink(vec![1, 2, 3], |_| Some(true)).is_empty());
        assert_eq!(shrink(vec![1, 2, 3], |_| None), [1, 2, 3]);
    }

    #[test]
    fn simpler_steps_are_taken_one_after_the_other() {
        let simpler = |step: &u32| vec![step / 2, 0];
        let fails = |steps: &[u32]| Some(steps.iter().sum::<u32>() >= 10);
        assert_eq!(simplify(vec![8, 9], simpler, fails), [4, 9]);
    }
}
