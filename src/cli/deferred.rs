// SPDX-License-Identifier: Apache-2.0
//! Options of a subcommand that are defined only when somebody asks for that subcommand.

use clap::builder::Resettable;
use clap::error::Error;
use clap::{ArgMatches, Args, Command};
use std::ops::Deref;

/// The options `T` of a subcommand. There are some hundred options in all, and defining them takes as long as a build of fifty cached
/// steps reads its database: a command defines its own only.
#[derive(Debug)]
pub(crate) struct Deferred<T>(T);

impl<T> Deref for Deferred<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Args> Args for Deferred<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(|command| {
            // What the subcommand itself says comes before what its options say.
            let about = command.get_about().cloned();
            let long_about = command.get_long_about().cloned();
            let after_help = command.get_after_help().cloned();
            let mut command = T::augment_args(command);
            if let Some(about) = about {
                command = command
                    .about(about)
                    .long_about(Resettable::from(long_about));
            }
            match after_help {
                Some(text) => command.after_help(text),
                None => command,
            }
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(T::augment_args_for_update)
    }
}

impl<T: Args> clap::FromArgMatches for Deferred<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }

    fn update_from_arg_matches_mut(&mut self, matches: &mut ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches_mut(matches)
    }
}
