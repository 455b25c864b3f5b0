//! Who a process is: it decides the section of the options, the publisher's kind and whom a
//! subscriber follows (the publish/subscribe refactor's roles).

use std::fmt;
use std::str::FromStr;

/// The process's part, handed to the constructors of drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Role {
    /// The API server and its publisher service: options from `[neutron]`, port 8866. A row without a
    /// role is one of these.
    #[default]
    NeutronServer,
    /// The controller of a compute node: options from `[controller]`, port 8867.
    DfLocalController,
}

/// [`Role::NeutronServer`] by the refactor's name.
pub const ROLE_NEUTRON_SERVER: Role = Role::NeutronServer;

/// [`Role::DfLocalController`] by the refactor's name.
pub const ROLE_DF_LOCAL_CONTROLLER: Role = Role::DfLocalController;

impl Role {
    /// The word in the directory's rows: `neutron-server` or `df-local-controller`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeutronServer => "neutron-server",
            Self::DfLocalController => "df-local-controller",
        }
    }

    /// The role whose publishers a subscriber of this one follows.
    #[must_use]
    pub fn counterpart(self) -> Self {
        match self {
            Self::NeutronServer => Self::DfLocalController,
            Self::DfLocalController => Self::NeutronServer,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is none of the roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: neutron-server or df-local-controller")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    /// Takes the words of rows and the names of the options' sections.
    fn from_str(word: &str) -> Result<Self, UnknownRole> {
        match word {
            "neutron-server" | "neutron_server" | "neutron" => Ok(Self::NeutronServer),
            "df-local-controller" | "df_local_controller" | "controller" => {
                Ok(Self::DfLocalController)
            }
            _ => Err(UnknownRole(word.to_owned())),
        }
    }
}
