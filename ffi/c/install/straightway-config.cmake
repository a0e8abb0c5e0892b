# find_package(straightway) gives the target straightway::straightway.
get_filename_component(_straightway_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET straightway::straightway)
    add_library(straightway::straightway SHARED IMPORTED)
    set_target_properties(straightway::straightway PROPERTIES
        IMPORTED_LOCATION "${_straightway_prefix}/lib/libstraightway.so.@VERSION@"
        IMPORTED_SONAME "libstraightway.so.0"
        INTERFACE_INCLUDE_DIRECTORIES "${_straightway_prefix}/include")
endif()
unset(_straightway_prefix)
